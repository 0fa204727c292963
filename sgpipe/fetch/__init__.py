"""Getting public data sets over HTTP: resumable, verified, parallel and polite."""
