"""Which images to label next, and which labels are probably wrong: what a network says of data it did not learn from.

features    one look at an image by a network: its features, pooled and kept; score layers learned on kept ones
picking     which images, by how they lie to each other and how sure the network is: no torch
suspects    which regions of labels are doubted, by thresholds of each class: no torch
queue       `fullyconv next`      review    `fullyconv review`      sheet    their pages
"""
