"""LLM folder to OpenVINO, by optimum-intel's export with 4-bit symmetric weights in groups of 32.

python openvino_llm.py TRANSFORMERS OUT
"""

import sys

import openvino
from openvino import opset13
from optimum.intel.openvino import OVModelForCausalLM, OVWeightQuantizationConfig


def main(source: str, out: str) -> None:
    """Export, quantize, and let the last position alone have logits, as openvino-genai does when it loads a model."""
    quantization = OVWeightQuantizationConfig(bits=4, sym=True, group_size=32, ratio=1.0)
    exported = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, quantization_config=quantization, use_cache=True, stateful=True
    )
    model = exported.model
    product = model.output("logits").node.input_value(0).node
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).node
    last = opset13.gather(product.input_value(0), opset13.constant([-1]), opset13.constant(1))
    product.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, f"{out}/model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
