"""The words of declarations, which users type, and the symbols that stand for values."""
