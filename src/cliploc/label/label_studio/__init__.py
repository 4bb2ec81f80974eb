"""Label Studio's ML backend: it asks for predictions of its tasks, and gets draft boxes and masks."""
