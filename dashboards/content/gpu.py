"""The GPUs, as DCGM sees them."""

from dashboards.model import (
    BYTES,
    CELSIUS,
    COUNT,
    GIB,
    MEGAHERTZ,
    SHARE,
    WATTS,
    Dashboard,
    Limit,
    Panel,
    Row,
)

GPU = "{{host}} GPU {{gpu}}"
NEEDS = "a GPU"


def each(field: str, how: str = "max") -> str:
    return f"{how} by (host, gpu) ({field}{{$host}})"


DASHBOARD = Dashboard(
    name="gpu",
    order=4,
    title="GPU",
    about="Work, memory, heat and faults of each GPU, as DCGM sees them.",
    services=False,
    rows=(
        Row(
            "Work and memory",
            (
                Panel(
                    "Busy",
                    SHARE,
                    ((f"{each('DCGM_FI_DEV_GPU_UTIL')} / 100", GPU),),
                    about="The share of time in which anything ran at all; not how well it was used.",
                    needs=NEEDS,
                ),
                Panel(
                    "Memory used",
                    BYTES,
                    ((f"{each('DCGM_FI_DEV_FB_USED')} * 1048576", GPU),),
                    needs=NEEDS,
                ),
                Panel(
                    "Memory free",
                    BYTES,
                    ((f"{each('DCGM_FI_DEV_FB_FREE', 'min')} * 1048576", GPU),),
                    limit=Limit(5 * GIB, least=True),
                    needs=NEEDS,
                ),
                Panel(
                    "Memory bus busy",
                    SHARE,
                    ((f"{each('DCGM_FI_DEV_MEM_COPY_UTIL')} / 100", GPU),),
                    about="Writing tokens is bound by this more than by computing.",
                    needs=NEEDS,
                ),
                Panel(
                    "Tokens written per GPU",
                    COUNT,
                    (
                        (
                            "sum by (host) (rate(vllm:generation_tokens_total{$host}[$rate]))"
                            " / count by (host) (DCGM_FI_DEV_GPU_UTIL{$host})",
                            "{{host}}",
                        ),
                    ),
                    needs=NEEDS,
                ),
                Panel(
                    "Clock of the processors",
                    MEGAHERTZ,
                    ((each("DCGM_FI_DEV_SM_CLOCK", "min"), GPU),),
                    about="Falls when the GPU is too hot or may draw no more power.",
                    needs=NEEDS,
                ),
            ),
        ),
        Row(
            "Heat and faults",
            (
                Panel(
                    "Temperature", CELSIUS, ((each("DCGM_FI_DEV_GPU_TEMP"), GPU),), limit=Limit(85), needs=NEEDS
                ),
                Panel("Power", WATTS, ((each("DCGM_FI_DEV_POWER_USAGE"), GPU),), needs=NEEDS),
                Panel(
                    "Last Xid",
                    COUNT,
                    ((each("DCGM_FI_DEV_XID_ERRORS"), GPU),),
                    about="The number of the last fault that the driver reported; 0 is none.",
                    needs=NEEDS,
                ),
            ),
        ),
    ),
)
