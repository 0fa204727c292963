"""params.yaml as frozen typed models: one module per section, the one place where a knob is defined."""
