"""Which attributes the headers of files are kept for, by what they are."""

CLOCKS = (
    "FrameReferenceDateTime",
    "FrameAcquisitionDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
"""Times of day, with or without a date."""

TIMES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TemporalPositionTimeOffset",
    "NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase",
    "NominalCardiacTriggerDelayTime",
    "NominalCardiacTriggerTimePriorToRPeak",
    "TriggerTime",
    "FrameReferenceTime",
    *CLOCKS,
)
"""What grows with time: it may order the slices at a position where no value is shared by a whole stack."""

COUNTS = ("AcquisitionNumber", "FrameAcquisitionNumber", "StackID")
"""Numbers that a scanner gives as it likes: they mean nothing beyond the stacks that they deal out."""

RUNNING_NUMBER = "InstanceNumber"
"""Grows from slice to slice of a series; what is left where nothing else tells the slices at a position apart."""

SETTINGS = (
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "InversionTimes",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "ComplexImageComponent",
    "ImageType",
    "FrameType",
    "ConvolutionKernel",
)
"""What a slice shows: one volume has one value of each."""

MARKS = (*TIMES, *COUNTS, RUNNING_NUMBER, *SETTINGS)
"""What may tell apart two slices at one position: time, echo, kernel; never anything of the patient."""

CSA_BLOCKS = range(0x10, 0x18)
"""Blocks of group 0029 in which Siemens' CSA image header is looked for; PS3.5 7.8.1: any may be reserved."""
