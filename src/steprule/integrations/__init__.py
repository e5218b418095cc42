"""What frameworks need to be told: `lightning` and `transformers` have a callback each, `timm` an entry in its registry.

Each module imports its framework, and nothing else of steprule imports these modules, but for `create_optimizer` with a model of timm.
"""
