"""Workers: the work that actors do with weights (train, roll out, evaluate)."""
