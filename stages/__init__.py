"""One typer app per DVC stage: parse, call `sgpipe`, write outputs and metrics."""
