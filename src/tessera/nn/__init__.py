"""Building blocks and formulas without opinion, shared by the seams."""
