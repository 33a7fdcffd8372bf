"""Many calls at once: a pool of actors that is an executor of `concurrent.futures`."""
