"""Export encoders and classifiers of the Hugging Face layout, or ONNX graphs of them, and check them against torch.

Finding: `lookup` chooses between our own table (`architectures`) and what optimum knows (`optimum_tasks`); `source`
loads the weights, `checkpoint` accounts for each of them. Describing: `part` and `modules` for the own table,
`transformers_part` and `transformers_modules` for the rest, `heads` for classifiers, `siglip2` for its positions,
`output_axes` and `trials` for shapes and inputs. Writing: `export` makes the folder, `check` compares (16-bit graphs as
`precision.simulated` computes them), `report` is encoder.json. `incoming` reads graphs that others exported.
"""
