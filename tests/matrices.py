"""Matrices that several tests look at."""

import torch

# The video course's, in its lessons on the linear map. Nobody changes it.
T = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
