"""Networks in torch and numpy, for actors and the coordinator: models, policies, flat parameters, updates, evaluation."""
