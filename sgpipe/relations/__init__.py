"""The relation classes: phrases, inverses, aliases of free text, and the rules from boxes to directions."""
