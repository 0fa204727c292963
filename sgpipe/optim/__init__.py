"""How anything here is trained: one step loop, learning-rate schedules, averaged and best weights, a log."""
