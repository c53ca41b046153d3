"""A labelled data set without downloads: synthetic speech, sound events, mixtures of both with questions."""
