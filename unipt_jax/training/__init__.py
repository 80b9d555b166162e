"""The train state, the objective, the step and the loop around it."""
