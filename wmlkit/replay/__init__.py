"""The released code replayed, defect by defect: what it trains, scores and searches, beside the method as described."""
