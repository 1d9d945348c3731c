"""The nodes that the compiler adds to declared ones: scores, boxes, expansions, steps and solutions."""
