"""A page to try a bundle in a browser. Gradio, which makes it, is imported when it is opened."""
