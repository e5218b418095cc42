"""A step of many parameters: what each needs, the plans that serve them, and what must hold to use those again."""
