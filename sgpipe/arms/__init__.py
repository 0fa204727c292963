"""How a graph reaches a generator: what an arm trains, its adapter on disk, and sampling with it."""
