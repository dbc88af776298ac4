"""Speed and memory of each part, as ratios within one run (`wmlkit bench`)."""
