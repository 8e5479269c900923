"""Labels and confidence of bilinearly upsampled scores without torch: the algebra, compiled kernels, numpy strips."""
