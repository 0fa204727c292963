"""MLflow as a view of what git and DVC hold: one parent run per experiment, one child per stage."""
