"""Flat programs: the tensor operations of one call, recorded, and what must stay as it was for them to be used."""
