"""The declared graph as data: nodes, their order, the ways between them, and what a pass leaves."""
