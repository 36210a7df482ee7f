"""The engine room of training, which knows no family: ridges, descent, states, devices."""
