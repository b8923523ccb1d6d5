"""What a Transformer is made of and how it is trained, concept by concept, for a given configuration.

A concept says in words and as an equation what it is, names the code that it is (as symbols and pieces of code, which
`concepts.source` finds), the parameters that it owns (as patterns of their names), and what to change in a configuration to
see its effect. Numbers, files and lines stand nowhere in here: `nanochat.component_map` computes them.

Letters in the equations are those of gpt.py (B, T, S, C, H, G, D, V, F); L is the number of blocks.
"""
