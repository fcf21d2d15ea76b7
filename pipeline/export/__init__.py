"""From a trained run to a bundle: a folder that loads without what trained it."""
