"""Label Studio's ML backend: it asks for predictions of its tasks, and gets draft boxes and masks.

`app` answers over HTTP, `labelling` reads a project's labelling interface, `task_pictures` gets a task's picture from
the places that are allowed, and `predictor` makes the predictions. `cliploc label-studio` starts it;
docs/label_studio.md explains it.
"""
