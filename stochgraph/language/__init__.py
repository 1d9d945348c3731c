"""What users type: symbols and the words of declarations."""
