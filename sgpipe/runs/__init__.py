"""What a stage needs to survive: atomic files, working state outside its outputs, locks, its import closure."""
