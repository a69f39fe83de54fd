"""What `fit` and `build` call as they run, and loggers for MLflow and Weights & Biases."""
