"""Is it the same person? Verification sets, their protocols, and backbones measured on them."""
