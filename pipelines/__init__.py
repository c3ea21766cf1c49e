"""Pipelines: recipes, training on Ray, the registry in MLflow and its gate."""
