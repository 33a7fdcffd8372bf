"""What torch and numpy networks need on both sides: models, policies, one flat vector of parameters, evaluation."""
