"""The same network, sooner: what prediction and training on the CPU compute another way than torch's layers do.

    prepare        a network made ready for prediction: layers folded, weights laid out once, the exact window
    folding        batch norm and ReLU into the convolutions before them
    convolution    the ways to compute a convolution without gradients, and which is taken for which layer
    autograd       the same with gradients, for training
    product        a convolution as one matrix product with the weights where they lie
    winograd       3x3 convolutions by a quarter of the multiplications
    split_bytes    float32 numbers as three bytes, for processors that multiply bytes faster
    window         with the paper's padding: only what the image reaches
    visibility     which cells that is
    thresholds     from which sizes on each of these pays, and where that was measured

Every path has torch's own layer as its slow twin, and a test that equates them up to rounding. Nothing here changes
what a network computes, only when.
"""
