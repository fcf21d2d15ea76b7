"""The way of the data, one room a stage: prepare, stream, train, evaluate, recommend."""
