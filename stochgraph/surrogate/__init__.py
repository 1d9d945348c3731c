"""What the compiler adds to declared nodes: scores, boxes, expansions, steps and solutions."""
