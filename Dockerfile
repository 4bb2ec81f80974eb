# The page on a CPU: docker build -t cliploc . && docker run --rm -p 7860:7860 cliploc
# Any other command: docker run --rm -v "$PWD:/work" cliploc cliploc annotate photos --labels labels.txt --out drafts
FROM python:3.12-slim

RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY src /build/src
RUN pip install --no-cache-dir '/build[bench,heic,refine,web]' && rm -r /build

RUN useradd --create-home cliploc
USER cliploc
WORKDIR /work
EXPOSE 7860
CMD ["cliploc", "serve", "--host", "0.0.0.0"]
