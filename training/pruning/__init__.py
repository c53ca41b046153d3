"""A model made smaller: which layers it needs least, without those, and with matrices of low rank."""
