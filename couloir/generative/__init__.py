"""What to propose: noise schedules, solvers, training, networks and the models."""
