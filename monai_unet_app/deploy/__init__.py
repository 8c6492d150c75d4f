"""A bundle as a MONAI application package, and the application in it.

package.py      bundle -> the tree of a package: manifests, code, model, Dockerfile
entry.py        in the image /var/holoscan/tools: becomes the application
app.py          the application: the environment -> a job (job.py, settings.py) -> an exit code
sdk.py          the job as an operator of the MONAI Deploy App SDK, which is imported here and nowhere else
"""
