"""`mechm export diagnose`: the layers that make fp16, bf16 or int8 fail, and which of them to keep in fp32."""
