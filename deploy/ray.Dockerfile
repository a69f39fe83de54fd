# The image of deploy/kuberay.yaml:
#   docker build --file deploy/ray.Dockerfile --tag dynamic-ray .
# Ray's version is that of `rayVersion` there.
FROM rayproject/ray:2.60.0-py312-cpu
COPY --chown=ray:users pyproject.toml README.md LICENSE /source/
COPY --chown=ray:users dynamic /source/dynamic
COPY --chown=ray:users policies /source/policies
COPY --chown=ray:users models /source/models
RUN pip install --no-cache-dir "/source[ray,text]" "ray[data,serve]==2.60.0" && rm -rf /source
