"""The tab. The only room that imports gradio."""
