"""Visual Genome: annotation files of every release to the canonical tables."""
