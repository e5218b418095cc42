"""From a rule to a program: what its step computes, stage by stage."""
