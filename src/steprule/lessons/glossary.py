"""The words that lessons use, each explained in a sentence or two."""

from __future__ import annotations

TERMS = {
    "loss": "One number that says how wrong a model is on some data. Training makes it smaller.",
    "gradient": "For each weight, how fast the loss grows when that weight grows. A step goes against it.",
    "weight": "One of the numbers that training changes; all of them together are the model. Also called a parameter.",
    "learning rate": "What the direction of a step is multiplied with: how far a step goes. lr in code, \u03b7 in formulas.",
    "step": "One change of all weights, by one gradient.",
    "optimizer": "What makes a step out of gradients: SGD, Adam and others.",
    "mini-batch": "A few examples of the data, drawn at random, whose gradient stands in for that of all of them.",
    "epoch": "As many steps as it takes to see every example once.",
    "SGD": "Stochastic gradient descent: subtract the learning rate times the gradient of a mini-batch.",
    "exponentially weighted average": "A running average in which each value counts a fixed factor less than the next one.",
    "bias correction": "Dividing a running average that began at 0 by the weight that it has seen, 1 \u2212 \u03b2 to the power of t.",
    "momentum": "Moving along a decaying sum of past gradients instead of the last one.",
    "ravine": "A loss that is steep in one direction and flat in another.",
    "curvature": "How fast the gradient changes along a direction. A steep wall has much, a flat floor little.",
    "condition number": "The largest curvature divided by the smallest: how much of a ravine a loss is.",
    "eigen-direction": "A direction in which the gradient points along the direction itself; there the loss is a plain parabola.",
    "critical damping": "The momentum at which a weight stops swinging around its goal and is as quick as it can be.",
    "mean square": "The average of the squares. Its root says how large numbers are, whatever their signs.",
    "epsilon": "A small number added to a divisor, so that nothing is divided by 0.",
    "weight decay": "Making every weight a little smaller in each step, whatever its gradient.",
    "L2 regularization": "Adding the squares of the weights to the loss, which adds a multiple of each weight to its gradient.",
    "layer": "A part of a network, with weights of its own, that takes what the layer before it gives.",
    "update": "What a step adds to the weights: new weights minus old ones.",
    "telemetry": "What an optimizer notes of its steps, such as the lengths of gradients, updates and weights.",
    "trust ratio": "The length of a layer's weights divided by that of its step; multiplying by it makes both equally long.",
    "layer-wise rate": "A learning rate of its own for each layer, set by the lengths of its weights and its step.",
    "clipping": "Making a gradient shorter where it is longer than allowed, and leaving it alone elsewhere.",
    "standard deviation": "How far values typically lie from their mean.",
    "validation loss": "The loss on examples that were not trained on.",
}
"""Terms and what they mean. A term is found in a text with an s at its end, too."""
