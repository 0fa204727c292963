"""Which blocks a relation goes through, by intervention: patching, ablation, heads."""
