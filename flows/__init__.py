"""The pipeline around `boss_core`: stages for DVC, tracking in MLflow, the command line."""
